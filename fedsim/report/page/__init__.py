"""The page of `fedsim report`: one HTML file that needs no network."""
