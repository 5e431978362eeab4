"""Commands that examine a run: certificate, fairness, cost, speed."""
