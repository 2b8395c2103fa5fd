"""Ask a finished bundle a question, with the models that made it. Nothing of a question is written anywhere."""
