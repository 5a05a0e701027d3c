"""The training companion of arrol_tts: makes quality heads and the pocket model."""
