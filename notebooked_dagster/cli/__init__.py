"""The notebooked command."""
