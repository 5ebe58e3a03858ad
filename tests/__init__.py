"""The test suite; helpers that several modules share lie beside the tests."""
