// What a person reads while their call waits in the gateway's queue: what it says now, and honestly when that has grown.

const NOTABLE = 10; // seconds by which a wait is longer than was said at first before it is called longer

// `place` {place, seconds}: what the gateway says now; `seconds` is unknown at times. `waited`: seconds so far.
export class QueueWait {
  #first = null; // seconds that the whole wait was to take, as it was said first

  // The name of the sentence to show.
  describe(place, waited) {
    if (!place.seconds) return "placed";
    const whole = waited + place.seconds;
    this.#first ??= whole;
    return whole > this.#first + NOTABLE ? "slower" : "queued";
  }
}
