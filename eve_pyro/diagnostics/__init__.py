"""What the units do: their census, and more that is read off measured terms."""
