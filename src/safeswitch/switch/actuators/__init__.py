"""What happens to a request on which the gate has fired. Importing a module of this package
registers its actions."""
