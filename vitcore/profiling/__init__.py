"""Where the time of training steps goes, op by op of the program: `vitcore train --profile`."""
