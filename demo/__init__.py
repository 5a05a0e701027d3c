"""The demo: a web page on which a question's traces compete. ``arrol-demo`` starts it."""
