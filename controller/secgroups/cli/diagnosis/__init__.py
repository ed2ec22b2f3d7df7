"""What ``sgctl doctor`` looks at, a module for each; they return findings and print nothing."""
