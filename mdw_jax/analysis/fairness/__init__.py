"""`mdw fairness`: groups in real and distilled data, and how well models retrieve each of them."""
