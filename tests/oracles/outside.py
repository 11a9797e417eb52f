"""What outside libraries call the formats that they have too."""

import gfloat.formats as gf

GFLOAT_BLOCKS = {
    "mxfp8-e4m3": gf.format_info_mxfp8_e4m3,
    "mxfp8-e5m2": gf.format_info_mxfp8_e5m2,
    "mxfp6-e3m2": gf.format_info_mxfp6_e3m2,
    "mxfp6-e2m3": gf.format_info_mxfp6_e2m3,
    "mxfp4": gf.format_info_mxfp4_e2m1,
    "mxint8": gf.format_info_mxint8,
}
