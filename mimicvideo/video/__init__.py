"""Stage 1: a video model, adapted to robot video."""
