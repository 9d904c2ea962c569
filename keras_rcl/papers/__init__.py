"""The tables of the papers, as they published them. A number of a paper stands here and nowhere else."""

from keras_rcl.papers.claf import CLAF
from keras_rcl.papers.cusin import CUSIN
from keras_rcl.papers.landsman import LANDSMAN
from keras_rcl.papers.wang import WANG

PAPERS = {paper.name: paper for paper in (CLAF, WANG, LANDSMAN, CUSIN)}
