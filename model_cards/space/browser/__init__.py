"""The static Space: a page that annotates cells in the visitor's browser."""
