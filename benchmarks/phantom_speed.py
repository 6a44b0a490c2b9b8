"""Images per second and core of the phantom renderer, and what storing them adds.

    python benchmarks/phantom_speed.py --size 256 --images 400

Renders the first patients of the training split in the order in which they are built, all their studies and images, on
one thread: pictures alone (film, masks, lungs), then whole records as `prepare` stages them (report and PNGs as well).
Each round takes the same images; the first is not counted. Processor time, so that other jobs disturb little.
"""

import argparse
import time
from collections.abc import Callable

import cv2

from tfds_builders.cxr_phantom.cxr_phantom import PhantomConfig, make_examples, plan
from tfds_builders.cxr_phantom.picture import render
from tfds_builders.cxr_phantom.study import patient_body, sample_study


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    config = PhantomConfig(name="speed", size=arguments.size, train_studies=arguments.images)
    items, pictures = [], []
    for patient, number in plan(config).splits["train"]:
        study, body = sample_study(config.seed, patient, number), patient_body(config.seed, patient)
        items.append((patient, number))
        pictures += [
            (body, study.pose(config.seed, image), study.findings, config.size) for image in range(len(study.views))
        ]
        if len(pictures) >= arguments.images:
            break

    def draw() -> None:
        for picture in pictures:
            render(*picture)

    def build() -> None:
        for item in items:
            make_examples(item, config)

    for name, work in (("pictures", draw), ("records", build)):
        rates = [len(pictures) / seconds(work) for _ in range(arguments.rounds + 1)][1:]
        print(f"{name:9s} {arguments.size} px: {', '.join(f'{rate:.0f}' for rate in rates)} images per core-second")


def seconds(work: Callable[[], None]) -> float:
    """Processor time of one call."""
    start = time.process_time()
    work()
    return time.process_time() - start


if __name__ == "__main__":
    main()
