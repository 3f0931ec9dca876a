"""The language of methods: what a method declares, what it may ask of its inputs, and the pass that it returns."""
