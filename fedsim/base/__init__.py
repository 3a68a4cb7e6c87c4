"""What everything stands on: errors, keys of random numbers, models as rows, ticks, stores of rows, files, memory, words for people."""
