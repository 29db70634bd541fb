"""One interface, two ways to run evaluations: in this process and on Ray actors."""
