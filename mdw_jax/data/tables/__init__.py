"""Tables of captions in every form that people hold: what is in the file decides how it is read, not what it is called."""
