"""The Cell Ontology: terms, releases, similarities, labels resolved to terms, descriptions."""
