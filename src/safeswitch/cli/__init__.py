"""The command line: parse, call one function, print. Holds no logic."""
