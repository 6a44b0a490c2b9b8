"""Encoders: pixels or tokens in, features at named levels out."""
