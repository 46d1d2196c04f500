"""Operators on images."""

from __future__ import annotations

from cases import Case

__all__ = ["CASES"]

CASES = [
    Case("mean of windows", "A C 6 4", "G G N N", "g = AveragePool<kernel_shape=[2,2], strides=[2,1]>(h)"),
    Case("mean of windows along time", "A C 6", "G G N", "g = AveragePool<kernel_shape=[3], pads=[1,1], count_include_pad=1>(h)"),
    Case("maximum of windows", "A C 6 4", "+ + N N", "g = MaxPool<kernel_shape=[2,2]>(h)"),
    Case("maximum of windows, its places read", "A C 6 4", "N N N N", "g, k = MaxPool<kernel_shape=[2,2], strides=[2,2]>(h)\n g1 = MaxUnpool<kernel_shape=[2,2], strides=[2,2]>(g, k)"),
    Case("norm of windows", "A C 6 4", "+ + N N", "g = LpPool<kernel_shape=[2,2], p=2>(h)", loose="- - s s"),
    Case("mean of all places", "A C D E", "G G 1 1", "g = GlobalAveragePool(h)"),
    Case("maximum of all places", "A C D E", "+ + P P", "g = GlobalMaxPool(h)"),
    Case("norm of all places", "A C D E", "+ + O O", "g = GlobalLpPool<p=2>(h)", mixed=False),
    Case("mean of regions", "A C 5 6", "N G N N", 'g = RoiAlign<mode="avg", output_height=2, output_width=2, sampling_ratio=2>(h, r, i)',
         "float[3,4] r = {0.5,0.5,4.0,4.0,1.0,0.0,3.0,4.0,0.0,1.0,4.5,3.5}, int64[3] i = {0,1,1}", free=False),
    Case("maximum of regions", "A C 5 6", "N + N N", 'g = RoiAlign<mode="max", output_height=2, output_width=2, sampling_ratio=2>(h, r, i)',
         "float[3,4] r = {0.5,0.5,4.0,4.0,1.0,0.0,3.0,4.0,0.0,1.0,4.5,3.5}, int64[3] i = {0,1,1}", free=False),
    Case("maximum of whole regions", "A C 5 6", "N + N N", "g = MaxRoiPool<pooled_shape=[2,2]>(h, r)",
         "float[3,5] r = {0,0,0,4,4,1,1,0,3,4,1,0,1,4,3}", free=False, mixed=False),
    Case("interpolated", "A C 5 6", "D G N N", "g = GridSample(h, r)", "float[A,3,2,2] r:small"),
    Case("interpolated by onnxruntime", "A C 5 6", "D G N N", "g = com.microsoft.GridSample(h, r)", "float[A,3,2,2] r:small", mixed=False),
    Case("resized by a scale", "A C 5 6", "G G N N", 'g = Resize<mode="linear">(h, , s)', "float[4] s = {1.0,1.0,2.0,2.0}"),
    Case("resized along one axis", "A C 5 6", "G G G N", 'g = Resize<mode="nearest", axes=[3]>(h, , s)', "float[1] s = {2.0}"),
    Case("resized to a size", "A C 5 6", "G G N G", 'g = Resize<mode="cubic">(h, , , s)', "int64[4] s = {A,C,7,6}"),
    Case("cropped and resized", "A C 5 6", "N N N N", 'g = Resize<coordinate_transformation_mode="tf_crop_and_resize", extrapolation_value=0.3>(h, r, s)',
         "float[8] r = {0.0,0.0,0.1,0.1,1.0,1.0,0.8,0.9}, float[4] s = {1.0,1.0,2.0,2.0}", mixed=False),
    Case("repeated places", "A C 5 6", "G G N N", "g = Upsample(h, k)", "float[4] k = {1.0,1.0,2.0,2.0}", opset=9, until=9, mixed=False),
    Case("depth to space", "A 16 D E", "G G*G*G G G", "g = DepthToSpace<blocksize=2>(h)", free=False),
    Case("depth to space, channels first", "A 16 D E", "G G*G*G G G", 'g = DepthToSpace<blocksize=2, mode="CRD">(h)', free=False),
    Case("space to depth", "A C 6 4", "G G G*G G*G", "g = SpaceToDepth<blocksize=2>(h)"),
    Case("uneven depth to space", "A 3 D E", "N N N N", "t = Concat<axis=1>(h, c5)\n g = DepthToSpace<blocksize=2>(t)", "float[A,5,D,E] c5", free=False),
    Case("uneven columns to an image", "A 3 9", "N N N", "t = Concat<axis=1>(h, c9)\n g = Col2Im(t, s, b)", "float[A,9,9] c9, int64[2] s = {4,4}, int64[2] b = {2,2}", free=False),
    Case("columns to an image", "A 12 9", "G G*N N", "g = Col2Im(h, s, b)", "int64[2] s = {4,4}, int64[2] b = {2,2}", free=False),
]  # fmt: skip
