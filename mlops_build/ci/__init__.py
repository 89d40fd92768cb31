"""The steps of a CI plan, one module each. They run the same way on a laptop, so that a failed build can be reproduced there."""
