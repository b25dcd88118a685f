"""The soak (`make soak`): everything at random for the time given, and what is left of it in the end."""
