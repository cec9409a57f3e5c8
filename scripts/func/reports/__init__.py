"""What a user judges a result by: scores, quality of the input, figures, the page, tables."""
