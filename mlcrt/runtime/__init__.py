"""The thin engine and the text around it: needs TVM's runtime only."""
