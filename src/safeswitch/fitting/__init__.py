"""How a switch is made: observe the base model, fit and calibrate the gate, train the refusal
head."""
