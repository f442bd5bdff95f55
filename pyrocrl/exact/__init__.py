"""Sums and integrals in closed form; knows neither data sets nor programs."""
