"""Teacher, student and untrained student on the same held-out items, and the page that shows it."""
