"""The safety landscape: how a model, its refusal head and its probers behave when their weights are
moved a little."""
