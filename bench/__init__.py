"""The instrument: measures speed and error of normalization layers. Run from the checkout, never installed."""
