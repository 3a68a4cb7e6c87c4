"""Where samples come from, how they are split over nodes, and how nodes' samples differ."""
