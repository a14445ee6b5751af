#!/usr/bin/env bash
# The whole job on the MNIST test set that comes with the program: set-up, run on two ranks, figures, a page to explore.
#
#     scripts/demo.sh             results in demo/mnist.nc, figures in demo/mnist_figures/, the page is demo/mnist.html
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/env.sh
source scripts/env.sh

scripts/setup.sh
ready=$SECONDS

mkdir -p demo
mpirun --quiet -n 2 build/cnnscope \
    --model tests/data/model.pth \
    --images tests/data/t10k-images-idx3-ubyte.gz --labels tests/data/t10k-labels-idx1-ubyte.gz \
    --output demo/mnist.nc --overwrite \
    --attribution saliency,gradcam:conv2
ran=$SECONDS

.venv/bin/python scripts/plot.py demo/mnist.nc
.venv/bin/python scripts/report.py demo/mnist.nc --model tests/data/model.pth
echo
echo "Results: demo/mnist.nc (ncdump -h, xarray). Figures: demo/mnist_figures/. To explore in a browser: demo/mnist.html."
echo "Took: set-up $ready s, job $((ran - ready)) s, figures and page $((SECONDS - ran)) s."
