"""Tests of a whole deployment: daemon, code server, runs and step processes as an operator has them."""
