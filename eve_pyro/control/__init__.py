"""The living neuron: bands on the units' energy, and the controllers that keep units inside them."""
