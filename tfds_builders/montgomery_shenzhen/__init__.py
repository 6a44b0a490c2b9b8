"""Montgomery and Shenzhen: tuberculosis labels, lung masks, short readings."""
