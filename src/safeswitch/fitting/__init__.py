"""How a switch is made: observe the untouched model, fit and calibrate the gate, train the refusal
head."""
