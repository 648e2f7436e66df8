"""An interactive plot of cells in one HTML file: zoom, hover, colours by label, number or gene."""
