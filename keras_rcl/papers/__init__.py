"""The tables of the papers as published, and one table of this project. No other module holds a published number."""

from keras_rcl.papers.claf import CLAF
from keras_rcl.papers.contrast import CONTRAST
from keras_rcl.papers.cusin import CUSIN
from keras_rcl.papers.landsman import LANDSMAN
from keras_rcl.papers.wang import WANG

PAPERS = {paper.name: paper for paper in (CLAF, WANG, LANDSMAN, CUSIN, CONTRAST)}
