"""The tables of the papers, as they published them, and one of our own; a published number stands nowhere else."""

from keras_rcl.papers.claf import CLAF
from keras_rcl.papers.contrast import CONTRAST
from keras_rcl.papers.cusin import CUSIN
from keras_rcl.papers.landsman import LANDSMAN
from keras_rcl.papers.wang import WANG

PAPERS = {paper.name: paper for paper in (CLAF, WANG, LANDSMAN, CUSIN, CONTRAST)}
