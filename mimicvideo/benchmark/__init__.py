"""Tasks to roll a policy out in, and the demonstrations their experts give."""
