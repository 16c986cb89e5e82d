"""What an evaluation comes to: numbers from the device's accumulators, lines for people, files and plots. No torch here."""
