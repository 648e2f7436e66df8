"""Files of cells: formats, matrices, tables, and what is refused."""
