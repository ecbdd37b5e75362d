"""What a user reads after a run: figures, the report page of a run and the page that compares runs."""
