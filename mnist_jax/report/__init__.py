"""What a person looks at after a run: figures, and a page of them."""
