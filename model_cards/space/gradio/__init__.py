"""A page that annotates a visitor's cells on the machine that serves it, with Gradio."""
