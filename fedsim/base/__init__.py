"""What everything stands on: errors, keyed random numbers, models as rows, ticks, stores of rows, files, words for people."""
