"""What one call used: to the spool, the limits, the counters and the log, exactly once."""

import asyncio
import logging

from apiproxy.dataplane import access_log, stops
from apiproxy.dataplane.context import RequestContext
from apiproxy.dataplane.errors import Refusal
from apiproxy.dataplane.formats import requests
from apiproxy.dataplane.limits.local import Reservation
from apiproxy.dataplane.limits.units import Consumption
from apiproxy.dataplane.model_queue import cost_of
from apiproxy.dataplane.relay import Exchange
from apiproxy.dataplane.scheduler import Lease
from apiproxy.dataplane.services import Services
from apiproxy.dataplane.token_usage import MAX_TOKEN_COUNT, Tokens
from apiproxy.dataplane.usage_events import Usage

log = logging.getLogger("madoguchi.gateway")

COMPLETE = frozenset({"finished", "looped"})  # statuses of calls whose client has a whole answer
# Seconds after which what a call has used so far is recorded for the first time.
CHECKPOINT = 3.0


class CallMeter:
    """A `relay.Meter`."""

    def __init__(self, services: Services, context: RequestContext, reservation: Reservation, started: float) -> None:
        """Meter a call that was admitted at `started` (Unix seconds)."""
        self._services = services
        self.context = context
        self._reservation = reservation
        self._started = started
        self._recorded: Usage | None = None
        self._checkpoint = 0.0  # when the next is due
        self._observer_failed = False
        self.replica: int | None = None
        self.retries = 0  # on other replicas
        self.lease: Lease | None = None
        self.exchange: Exchange | None = None
        self.refusal: Refusal | None = None  # what the client is sent instead of an answer
        self.suspected = False  # an engine died while this very call was open, some minutes ago
        self.trial: asyncio.Lock | None = None  # held while no other suspect of the model may go

    def end_trial(self) -> None:
        trial, self.trial = self.trial, None
        if trial is not None:
            trial.release()

    @property
    def is_urgent(self) -> bool:
        """Whether the client waits for the first byte of a stream, or of an answer that is assembled from one."""
        context, exchange = self.context, self.exchange
        assembled = exchange is not None and exchange.assembles and context.endpoint.streams
        return not context.key.batch and (context.streams or assembled)

    # --- for the relay

    def open(self) -> None:
        self._record_open(Tokens(prompt=self.context.call.prompt_estimate))
        self.context.call.forget_body()
        if self.lease is not None:
            self.lease.prompt_read()

    def close(self, status: str, tokens: Tokens, *, estimated: bool) -> None:
        """Record what was used. Whatever fails, nothing stays reserved, here or when the call is over."""
        context = self.context
        most = requests.max_usage(context.call, context.endpoint, context.model)
        if tokens.prompt + tokens.completion > most:
            tokens, estimated = tokens.within(most), True
        looped, saved = self._count_loops(tokens)
        ended = status
        if looped and status in ("finished", "aborted"):  # a person who watches a loop leaves
            status = "looped"
        try:
            stopped_by = self._find_stop(ended)
            usage = self._usage(status, tokens, estimated=estimated, stopped_by=stopped_by, looped=looped, saved=saved)
            self._services.spool.close_call(usage)
            self._recorded = usage
        finally:
            self._reservation.settle(Consumption(tokens.prompt + tokens.completion, context.request_bytes))
            if self.lease is not None:
                self.lease.charge(cost_of(tokens))
        self._count(status, tokens)
        if looped:
            self._services.metrics.count_loop(context.model.name, looped, saved)

    def observer_failed(self) -> None:
        self.context.guard = None
        self._observer_failed = True
        self._services.metrics.count_observer_failure()

    def estimate(self, seconds: float) -> int:
        context = self.context
        made = self._services.throughput.estimate(context.model.id, seconds) * context.call.answers
        return round(min(made, requests.max_generated(context.call, context.endpoint, context.model)))

    # --- for the gateway

    def checkpoint(self, now: float) -> None:
        """Record what was used so far, for the case that this process is killed. Call it about once a second.

        First after CHECKPOINT seconds, then whenever the call has become a quarter older, so that a killed process
        loses a fifth of what an answer used: 20 lines in the first ten minutes, 8 in the next hour.
        """
        exchange = self.exchange
        if exchange is None or exchange.metered or not exchange.reached:
            return
        age = now - exchange.began
        if age < CHECKPOINT or now < self._checkpoint:
            return
        self._checkpoint = now + max(CHECKPOINT, age / 4)
        self._record_open(exchange.used()[0])

    def charge(self) -> None:
        """Charge the caller with what the call has used so far, while others wait. Call it about once a second."""
        exchange, lease = self.exchange, self.lease
        if exchange is None or lease is None or exchange.metered or not exchange.reached:
            return
        if lease.is_contended:
            lease.charge(cost_of(exchange.used()[0]))

    def finish(self) -> None:
        """End the call. What no exchange has metered was refused by the engine, or never reached one."""
        exchange = self.exchange
        try:
            if self._recorded is None and exchange is not None and exchange.reached:
                self.close("refused" if exchange.refusal.status < 500 else "failed", Tokens(), estimated=False)
        finally:  # whatever fails, nothing stays reserved
            self._reservation.release()
        if self.suspected and self._recorded is not None and self._recorded.status in COMPLETE:
            self._services.suspects.clear(self.context.key.id, self.context.call.identity)
        if self._recorded is not None:
            access_log.log_call(self._recorded, self.refusal)
            if (traces := self._services.traces) is not None and (trace := self.context.trace) is not None:
                traces.note(trace, self._recorded, self.context.call.model)
            if self.refusal is not None:
                self.refusal.logged = True
        self.exchange = None  # breaks the reference cycle, which only the garbage collector could free

    def _record_open(self, tokens: Tokens) -> None:
        usage = self._usage("interrupted", tokens, estimated=True, stopped_by=stops.RESTART)
        self._services.spool.open_call(usage)

    def _count(self, status: str, tokens: Tokens) -> None:
        """Count the call for /metrics, and for the estimates of later calls."""
        metrics, context = self._services.metrics, self.context
        model, path, prompt, completion = context.model, context.endpoint.path, tokens.prompt, tokens.completion
        if (exchange := self.exchange) is None:
            metrics.count_request(path, model.name, status)
            metrics.count_tokens(model.name, prompt, completion)
        else:
            first = None if exchange.first_byte_at is None else exchange.first_byte_at - exchange.began
            lasted = exchange.now() - exchange.began
            metrics.count_call(
                path, model.name, status, prompt=prompt, completion=completion, first_byte=first, whole=lasted
            )
            if status in COMPLETE:
                self._services.throughput.observe(model.id, completion / context.call.answers, lasted)
                if self.lease is not None and exchange.is_streamed and exchange.first_byte_at is not None:
                    self.lease.note_first_token(exchange.first_byte_at - exchange.attempt_at)
                if exchange.first_byte_at is not None and (events := exchange.events):
                    metrics.observe_stream(model.name, events, exchange.heard_at - exchange.first_byte_at)

    def _count_loops(self, tokens: Tokens) -> tuple[int, int]:
        """Return how many of the answer's tokens repeat others, and how many more the call could have had."""
        context, guard = self.context, self.context.guard
        if guard is None:
            return 0, 0
        try:
            looped = guard.looped_tokens(tokens.completion)
        except Exception:  # see `Exchange._observe`: usage is recorded, whatever is at fault
            log.exception("call %s: loops are not counted", context.request_id)
            self.observer_failed()
            return 0, 0
        if not guard.stopped:
            return looped, 0
        most = requests.max_generated(context.call, context.endpoint, context.model)
        left = max(0, most - tokens.completion)
        return max(1, looped), min(left * len(guard.stopped) // context.call.answers, MAX_TOKEN_COUNT)

    def _find_stop(self, status: str) -> str:
        """Return what ended the call, one of `stops.STOPS`. `status`: as the exchange gives it."""
        exchange, guard = self.exchange, self.context.guard
        assert exchange is not None
        if guard is not None and guard.stopped:
            return stops.LOOP
        if status == "aborted":
            return stops.CLIENT
        if self.context.endpoint.costs != "prompt and answer" and status == "finished":
            return stops.STOP
        reason = exchange.finish_reason
        if status == "finished" or reason == "abort":
            return stops.BY_FINISH_REASON.get(reason, stops.OTHER)
        return stops.stop_of_failure(exchange.refusal, exchange.error, says_dead=exchange.says_dead)

    def _usage(
        self, status: str, tokens: Tokens, *, estimated: bool, stopped_by: str, looped: int = 0, saved: int = 0
    ) -> Usage:
        exchange, context, lease = self.exchange, self.context, self.lease
        assert exchange is not None
        first, now, key, caller = exchange.first_byte_at, exchange.now(), context.key, context.caller
        waited, loading = context.seconds_waited or 0.0, context.loading + context.restarting
        prefill = None if first is None or not exchange.is_streamed else first - exchange.attempt_at
        return Usage(
            request_id=context.request_id,
            key=key.id,
            user=key.user,
            tenant=key.tenant,
            model=context.model.name,
            replica=self.replica,
            endpoint=context.endpoint.path,
            started=self._started,
            first_token_ms=None if first is None else round((first - exchange.began) * 1000),
            duration_ms=round((now - exchange.began) * 1000),
            prompt_tokens=tokens.prompt,
            cached_tokens=tokens.cached,
            completion_tokens=tokens.completion,
            reasoning_tokens=tokens.reasoning,
            status=status,
            estimated=estimated,
            end_user=context.end_user,
            address=caller.address,
            client=caller.client,
            looped_tokens=looped,
            saved_tokens=saved,
            temperature=context.temperature,
            watched=context.guard is not None,
            observer_failed=self._observer_failed,
            queued_ms=round((waited - loading) * 1000),
            loading_ms=round(loading * 1000),
            prefill_ms=None if prefill is None else round(prefill * 1000),
            retries=self.retries,
            stopped_by=stopped_by,
            engine=lease.replica.engine if lease is not None and lease.has_replica else "",
        )
