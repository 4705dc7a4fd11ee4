"""What Postern costs, beside other programs that do the same or less: `make bench`. See docs/performance.md."""
