"""What a setting is: parts with fields, units, shares, values that differ by node or over time, and files of measurements."""
